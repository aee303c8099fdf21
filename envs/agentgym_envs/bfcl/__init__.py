"""Function calling as BFCL judges it: conversations over executable tool classes, and single questions."""
