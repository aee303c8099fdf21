"""Flights, the cards they are paid with, and what travellers ask beside."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any, ClassVar, Literal

from agentgym.tools import tool
from agentgym_envs.bfcl.apis.base import Api, facts

_TODAY = date(2026, 1, 1)
"""On which travellers must be of age: the world's clock stands still, so that a verdict never changes."""
_INVOICE = ("travel_date", "travel_from", "travel_to", "travel_class", "travel_cost", "transaction_id")


class TravelAPI(Api):
    """Bookings and cards are kept by their ids."""

    defaults: ClassVar[dict[str, Any]] = {
        "credit_card_list": {}, "booking_record": {}, "access_token": None, "token_type": None,
        "token_expires_in": None, "token_scope": None, "user_first_name": None, "user_last_name": None,
        "budget_limit": None,
    }  # fmt: skip

    @tool
    def authenticate_travel(
        self, client_id: str, client_secret: str, refresh_token: str,  # noqa: ARG002 -- any will do
        grant_type: Literal["read_write", "read", "write"], user_first_name: str, user_last_name: str,
    ) -> Any:  # fmt: skip
        """Log in for a traveller; returns the access token that the other calls want."""
        token = {"token_expires_in": 2, "access_token": str(self.random.randint(100000, 999999)),
                 "token_type": "Bearer", "token_scope": grant_type}  # fmt: skip
        self.state |= {**token, "user_first_name": user_first_name, "user_last_name": user_last_name}
        return {name.removeprefix("token_") if name != "token_type" else name: one for name, one in token.items()}

    @tool
    def travel_get_login_status(self) -> Any:
        """Tell whether there is a valid access token."""
        return {"status": bool(self.state["token_expires_in"])}

    @tool
    def get_budget_fiscal_year(self, lastModifiedAfter: str | None = None, includeRemoved: str | None = None) -> Any:  # noqa: ARG002
        """Tell the fiscal year of the budget."""
        return {"budget_fiscal_year": "2018"}

    @tool
    def register_credit_card(
        self, access_token: str, card_number: str, expiration_date: str, cardholder_name: str,
        card_verification_number: int,
    ) -> Any:  # fmt: skip
        """Register a credit card, with its expiration date as MM/YYYY; returns its id."""
        self._allowed(access_token)
        cards = self.state["credit_card_list"]
        if card_number in cards:
            raise ValueError("this card is registered already")
        card_id = str(self.random.randint(10**11, 10**12 - 1))
        cards[card_id] = {"card_number": card_number, "expiration_date": expiration_date,
                          "cardholder_name": cardholder_name, "card_verification_number": card_verification_number,
                          "balance": self.random.randint(10000, 99999)}  # fmt: skip
        return {"card_id": card_id}

    @tool
    def get_all_credit_cards(self) -> Any:
        """Show all registered credit cards."""
        return {"credit_card_list": self.state["credit_card_list"]}

    @tool
    def get_credit_card_balance(self, access_token: str, card_id: str) -> Any:
        """Tell the balance of a credit card."""
        self._allowed(access_token)
        return {"card_balance": self._card(card_id)["balance"]}

    @tool
    def list_all_airports(self) -> Any:
        """List the codes of all airports."""
        return {"airports": list(facts()["airports"].values())}

    @tool
    def get_nearest_airport_by_city(self, location: str) -> Any:
        """Find the code of the airport that is nearest to a city."""
        return {"nearest_airport": facts()["airports"].get(location, "Unknown")}

    @tool
    def get_flight_cost(
        self, travel_from: str, travel_to: str, travel_date: str, travel_class: Literal["economy", "business", "first"]
    ) -> Any:
        """Tell what a flight costs in USD, from one airport's code to another's, on a day as YYYY-MM-DD."""
        return {"travel_cost_list": [_cost(travel_from, travel_to, travel_date, travel_class)]}

    @tool
    def book_flight(
        self, access_token: str, card_id: str, travel_date: str, travel_from: str, travel_to: str,
        travel_class: Literal["economy", "business", "first"],
    ) -> Any:  # fmt: skip
        """Book a flight between two airports' codes on a day as YYYY-MM-DD, paid by a registered card."""
        self._allowed(access_token)
        card = self._card(card_id)
        _day(travel_date)
        cost = _cost(travel_from, travel_to, travel_date, travel_class)
        if card["balance"] < max(cost, self.state["budget_limit"] or 0):
            raise ValueError("the card's balance is below the price, or below the budget limit")
        card["balance"] -= cost
        booking_id, paid = str(self.random.randint(10**6, 10**7 - 1)), str(self.random.randint(10**7, 10**8 - 1))
        self.state["booking_record"][booking_id] = {
            "card_id": card_id, "travel_date": travel_date, "travel_from": travel_from, "travel_to": travel_to,
            "travel_class": travel_class, "travel_cost": cost, "transaction_id": paid,
        }  # fmt: skip
        return {"booking_id": booking_id, "transaction_id": paid, "booking_status": True, "booking_history": {}}

    @tool
    def cancel_booking(self, access_token: str, booking_id: str) -> Any:
        """Cancel a booking; its price goes back to the card."""
        self._allowed(access_token)
        booking = self._booking(booking_id)
        if booking.get("card_id") not in self.state["credit_card_list"] or "travel_cost" not in booking:
            raise ValueError("this booking was not made here, so that it cannot be refunded")
        self._card(booking["card_id"])["balance"] += booking["travel_cost"]
        del self.state["booking_record"][booking_id]
        return {"cancel_status": True}

    @tool
    def get_booking_history(self, access_token: str) -> Any:
        """Show all bookings by their ids."""
        self._allowed(access_token)
        return {"booking_history": self.state["booking_record"]}

    @tool
    def retrieve_invoice(
        self, access_token: str, booking_id: str | None = None, insurance_id: str | None = None  # noqa: ARG002
    ) -> Any:  # fmt: skip
        """Show the invoice of a booking."""
        self._allowed(access_token)
        booking = self._booking(booking_id)
        return {"invoice": {"booking_id": booking_id, **{name: booking.get(name) for name in _INVOICE}}}

    @tool
    def purchase_insurance(
        self, access_token: str, insurance_type: str, booking_id: str, insurance_cost: float, card_id: str  # noqa: ARG002
    ) -> Any:  # fmt: skip
        """Buy an insurance for a booking, at its price, by a registered card."""
        self._allowed(access_token)
        if self.state["budget_limit"] is not None and self.state["budget_limit"] < insurance_cost:
            raise ValueError("the insurance costs more than the budget limit")
        self._booking(booking_id)
        self._card(card_id)["balance"] -= insurance_cost
        return {"insurance_id": str(self.random.randint(10**8, 10**9 - 1)), "insurance_status": True}

    @tool
    def contact_customer_support(self, booking_id: str, message: str) -> Any:  # noqa: ARG002
        """Write to the customer support about a booking."""
        self._booking(booking_id)
        return {"customer_support_message": "Thank you. Your message has arrived, and you will hear from us."}

    @tool
    def set_budget_limit(self, access_token: str, budget_limit: float) -> Any:
        """Set the budget limit in USD."""
        self._allowed(access_token)
        self.state["budget_limit"] = budget_limit
        return {"budget_limit": budget_limit}

    @tool
    def compute_exchange_rate(self, base_currency: str, target_currency: str, value: float) -> Any:
        """Convert an amount between USD and RMB, EUR, JPY, GBP, CAD, AUD, INR, RUB, BRL or MXN."""
        rates = facts()["per_usd"]
        if base_currency == "USD" and target_currency in rates:
            return {"exchanged_value": float(value * rates[target_currency])}
        if target_currency == "USD" and base_currency in rates:
            return {"exchanged_value": round(value / rates[base_currency], 2)}
        raise ValueError(f"there is no rate from {base_currency!r} to {target_currency!r}")

    @tool
    def verify_traveler_information(
        self, first_name: str, last_name: str, date_of_birth: str, passport_number: str
    ) -> Any:
        """Check a traveller: the user's own name, of age (born on a day as YYYY-MM-DD), a passport of the US."""
        born = _day(date_of_birth)
        age = _TODAY.year - born.year - ((_TODAY.month, _TODAY.day) < (born.month, born.day))
        if (first_name, last_name) != (self.state["user_first_name"], self.state["user_last_name"]):
            failure = "the name is not the user's"
        elif age < 18:
            failure = "the traveller is below 18"
        elif not passport_number.startswith("US"):
            failure = "the passport is not of the United States"
        else:
            return {"verification_status": True}
        return {"verification_status": False, "verification_failure": failure}

    # ------------------------------------------------------------------ the rest

    def _allowed(self, access_token: str) -> None:
        if self.state["token_expires_in"] == 0 or access_token != self.state["access_token"]:
            raise ValueError("the access token is not valid")

    def _card(self, card_id: str) -> Any:
        card = self.state["credit_card_list"].get(card_id)
        if card is None or "balance" not in card:
            raise ValueError(f"there is no card with the id {card_id!r} and a balance")
        return card

    def _booking(self, booking_id: str | None) -> Any:
        if booking_id not in self.state["booking_record"]:
            raise ValueError(f"there is no booking {booking_id!r}")
        return self.state["booking_record"][booking_id]


def _cost(origin: str, target: str, day: str, travel_class: str) -> float:
    base = facts()["routes"].get(origin, {}).get(target)
    if base is None:
        raise ValueError(f"there is no flight from {origin!r} to {target!r}")
    doubled = sum(int(one) for one in day if one in "0123456789") % 2 == 0
    return float(base * facts()["class_factors"][travel_class] * (2 if doubled else 1))


def _day(text: str) -> date:
    try:
        return datetime.strptime(text, "%Y-%m-%d").date()
    except ValueError as error:
        raise ValueError(f"wanted a day as YYYY-MM-DD, found {text!r}") from error
