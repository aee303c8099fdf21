"""Queries that want more than to ask."""

_GROW = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT"

QUERIES = {
    "is a constant": "SELECT 1",
    "is no rows": "SELECT 1 WHERE 0",
    "is a comment": "-- SELECT 1",
    "attaches a file": "ATTACH DATABASE '/tmp/other.sqlite' AS other",
    "writes the schema": "PRAGMA writable_schema = ON",
    "loads an extension": "SELECT load_extension('/lib/x86_64-linux-gnu/libc.so.6')",
    "loads an extension through a name": "SELECT \"load_extension\"('libc.so.6', 'system')",
    "deletes rows": "DELETE FROM sqlite_master",
    "drops a table": "DROP TABLE IF EXISTS answers",
    "makes a table": "CREATE TEMP TABLE answers AS SELECT 1",
    "makes a file": "VACUUM INTO '/tmp/copy.sqlite'",
    "says two things": "SELECT 1; DELETE FROM sqlite_master",
    "hides the second thing": "SELECT 1 /* ; */ ; PRAGMA query_only = OFF",
    "explains": "EXPLAIN SELECT 1",
    "returns from a change": "INSERT INTO sqlite_sequence VALUES ('a', 1) RETURNING 1",
    "never ends": f"{_GROW} count(*) FROM n",
    "returns without end": f"{_GROW} i FROM n",
    "sorts without end": f"{_GROW} i FROM n ORDER BY -i",
    "multiplies": f"{_GROW} count(*) FROM n a, n b, n c, n d WHERE a.i = b.i",
    "has one huge cell": "SELECT printf('%.*c', 1000000000, 'x')",
    "has one huge blob": "SELECT hex(zeroblob(500000000))",
    "is nested deeply": "SELECT " + "(" * 900 + "1" + ")" * 900,
    "matches slowly": "SELECT printf('%.*c', 900000, 'a') LIKE '" + "%a" * 450 + "%b'",
    "reads a pragma as a table": "SELECT * FROM pragma_database_list",
    "has a NUL": "SELECT 1\0; DROP TABLE answers",
    "is very long": "SELECT " + ", ".join(["1"] * 30_000),
}
"""By name; none of them answers anything."""
