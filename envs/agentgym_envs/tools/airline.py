"""An airline: reservations to book, change and cancel, as in tau-bench's airline domain.

The rules and the shape of the records follow Yao et al. 2024, "tau-bench: A Benchmark for Tool-Agent-User Interaction
in Real-World Domains"; gold actions of its tasks leave the same records behind. As there, the tools do not check the
policy: whoever breaks it leaves other records behind than the reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta
from typing import Any, ClassVar, Literal

from typing_extensions import TypedDict

from agentgym.tools import tool
from agentgym_envs.tools.service import ServiceWorld
from agentgym_envs.tools.world import shown

Cabin = Literal["basic_economy", "economy", "business"]
NOW = "2024-05-15T15:00:00"
BAG_PRICE = 50
_MOST_BAGS = 1000
INSURANCE_PRICE = 30
_NEW_RESERVATIONS = ("HATHAT", "HATHAU", "HATHAV")
_NEW_CERTIFICATES = ("certificate_3221322", "certificate_3221323", "certificate_3221324")
_CITIES = {
    "ATL": "Atlanta", "BOS": "Boston", "CLT": "Charlotte", "DEN": "Denver", "DFW": "Dallas", "DTW": "Detroit",
    "EWR": "Newark", "IAH": "Houston", "JFK": "New York", "LAS": "Las Vegas", "LAX": "Los Angeles", "LGA": "New York",
    "MCO": "Orlando", "MIA": "Miami", "MSP": "Minneapolis", "ORD": "Chicago", "PHL": "Philadelphia", "PHX": "Phoenix",
    "SEA": "Seattle", "SFO": "San Francisco",
}  # fmt: skip


class Leg(TypedDict):
    """One flight of a reservation."""

    flight_number: str
    date: str


class Passenger(TypedDict):
    """Who flies; born on a day as YYYY-MM-DD."""

    first_name: str
    last_name: str
    dob: str


class Payment(TypedDict):
    """How much is paid by which of the user's payment methods."""

    payment_id: str
    amount: float


class AirlineWorld(ServiceWorld):
    """Tables `users`, `reservations` and `flights`."""

    policy: ClassVar[str] = f"""You serve the customers of an airline. The time is {NOW}.
- First obtain the user id. Before a call that changes anything, say what you will do and ask; go on only after a yes.
- Tell only what the tools or the customer told you. Make one call at a time, or talk, never both at once.
- Deny what is against these rules. Hand over to a human only what your tools cannot do.
- Flights can be booked only if they are available. At most five passengers, all on the same flights in one cabin.
- A booking is paid by at most one certificate, one credit card and three gift cards, all from the user's profile. What
  is left of a certificate is lost.
- Free checked bags for each passenger, in basic economy, economy and business: regular members 0, 1 and 2; silver
  members 1, 2 and 3; gold members 2, 3 and 3. Each further bag costs {BAG_PRICE} dollars. Bags can be added and not
  removed.
- Travel insurance costs {INSURANCE_PRICE} dollars for each passenger, only when booking.
- Basic economy flights cannot be changed; others can, with the same origin, destination and trip type. Kept flights
  keep their price. The cabin can be changed in any reservation, for all its flights at once, for the difference.
- A change is paid or refunded by one gift card or credit card.
- Passengers can be changed, and not their number.
- A reservation can be cancelled within 24 hours of booking, if the airline cancelled a flight, if it is in business, or
  if it is insured and the reason is health or weather. No flight of it may have been flown. Membership changes nothing.
- Who complains about a cancelled flight and asks for compensation gets a certificate of 100 dollars for each
  passenger; about a delayed one, after a change or a cancellation, of 50. Regular members without insurance who do not
  fly business get none."""
    changing = frozenset(
        {
            "book_reservation",
            "cancel_reservation",
            "send_certificate",
            "update_reservation_baggages",
            "update_reservation_flights",
            "update_reservation_passengers",
        }
    )

    # ------------------------------------------------------------------ reading

    @tool
    def get_user_details(self, user_id: str) -> str:
        """Show a user's name, membership, payment methods and reservations."""
        return shown(self._user(user_id))

    @tool
    def get_reservation_details(self, reservation_id: str) -> str:
        """Show a reservation."""
        return shown(self._reservation(reservation_id))

    @tool
    def list_all_airports(self) -> str:
        """List the codes of all airports, with their cities."""
        codes = sorted({one[end] for _, one in self.tables.items("flights") for end in ("origin", "destination")})
        return shown({code: _CITIES.get(code, code) for code in codes})

    @tool
    def search_direct_flight(self, origin: str, destination: str, date: str) -> str:
        """Find the available flights between two airports' codes on a day as YYYY-MM-DD."""
        flights = (one for _, one in self.tables.items("flights") if one["destination"] == destination)
        return shown([on_day for one in flights if one["origin"] == origin for on_day in _available(one, date)])

    @tool
    def search_onestop_flight(self, origin: str, destination: str, date: str) -> str:
        """Find pairs of available flights with one stop between two airports' codes, from a day as YYYY-MM-DD."""
        flights = [one for _, one in self.tables.items("flights")]
        pairs = [
            [{**one, "date": date}, {**other, "date": later}]
            for first in flights if first["origin"] == origin
            for one in _available(first, date)
            for second in flights if second["destination"] == destination and second["origin"] == first["destination"]
            for later in [_arrival_day(first, date)]
            for other in _available(second, later)
            if later > date or first["scheduled_arrival_time_est"] <= second["scheduled_departure_time_est"]
        ]  # fmt: skip
        return shown(pairs)

    # ------------------------------------------------------------------ changing

    @tool
    def book_reservation(
        self, user_id: str, origin: str, destination: str, flight_type: Literal["one_way", "round_trip"], cabin: Cabin,
        flights: list[Leg], passengers: list[Passenger], payment_methods: list[Payment], total_baggages: int,
        nonfree_baggages: int, insurance: Literal["yes", "no"],
    ) -> str:  # fmt: skip
        """Book a reservation; the payments must add up to its price. Ask the customer first."""
        self._user(user_id)
        _require_bags(total_baggages, nonfree_baggages)
        key = next((one for one in _NEW_RESERVATIONS if self.tables.get("reservations", one) is None), None)
        if key is None:
            raise ValueError("no more than three reservations can be made in one conversation")
        legs = [self._priced(one, cabin, len(passengers)) for one in flights]
        price = len(passengers) * (sum(one["price"] for one in legs) + INSURANCE_PRICE * (insurance == "yes"))
        self._require_payable(user_id, payment_methods, price + BAG_PRICE * nonfree_baggages)
        user = self.tables.edit("users", user_id)
        for one in payment_methods:
            method = user["payment_methods"][one["payment_id"]]
            if method["source"] == "gift_card":
                method["amount"] -= one["amount"]
            elif method["source"] == "certificate":
                del user["payment_methods"][one["payment_id"]]
        user["reservations"].append(key)
        reservation = {
            "reservation_id": key, "user_id": user_id, "origin": origin, "destination": destination,
            "flight_type": flight_type, "cabin": cabin, "flights": legs, "passengers": passengers,
            "payment_history": payment_methods, "created_at": NOW, "total_baggages": total_baggages,
            "nonfree_baggages": nonfree_baggages, "insurance": insurance,
        }  # fmt: skip
        self.tables.put("reservations", key, reservation)
        return shown(reservation)

    @tool
    def cancel_reservation(self, reservation_id: str) -> str:
        """Cancel a whole reservation and refund it. Ask the customer first."""
        self._reservation(reservation_id)
        reservation = self.tables.edit("reservations", reservation_id)
        paid = reservation["payment_history"]
        paid += [{"payment_id": one["payment_id"], "amount": -one["amount"]} for one in paid]
        reservation["status"] = "cancelled"
        return shown(reservation)

    @tool
    def update_reservation_baggages(
        self, reservation_id: str, total_baggages: int, nonfree_baggages: int, payment_id: str
    ) -> str:
        """Set how many bags a reservation has, in all and to be paid for. Ask the customer first."""
        old = self._reservation(reservation_id)
        _require_bags(total_baggages, nonfree_baggages)
        cost = BAG_PRICE * max(0, nonfree_baggages - old["nonfree_baggages"])
        self._charge(old["user_id"], payment_id, cost)
        reservation = self.tables.edit("reservations", reservation_id)
        reservation |= {"total_baggages": total_baggages, "nonfree_baggages": nonfree_baggages}
        return self._paid(reservation, payment_id, cost)

    @tool
    def update_reservation_flights(self, reservation_id: str, cabin: Cabin, flights: list[Leg], payment_id: str) -> str:
        """Set the cabin and all flights of a reservation, the kept ones too. Ask the customer first."""
        old = self._reservation(reservation_id)
        people = len(old["passengers"])
        kept = {(one["flight_number"], one["date"]): one for one in old["flights"] if cabin == old["cabin"]}
        legs = [_kept(one, kept) or self._priced(one, cabin, people) for one in flights]
        cost = people * (sum(one["price"] for one in legs) - sum(one["price"] for one in old["flights"]))
        self._charge(old["user_id"], payment_id, cost)
        # The record keeps its old cabin: so it is in the benchmark, whose recorded states must come out.
        reservation = self.tables.edit("reservations", reservation_id)
        reservation["flights"] = legs
        return self._paid(reservation, payment_id, cost)

    @tool
    def update_reservation_passengers(self, reservation_id: str, passengers: list[Passenger]) -> str:
        """Set who flies, as many people as before. Ask the customer first."""
        if len(passengers) != len(self._reservation(reservation_id)["passengers"]):
            raise ValueError("number of passengers does not match")
        reservation = self.tables.edit("reservations", reservation_id)
        reservation["passengers"] = list(passengers)
        return shown(reservation)

    @tool
    def send_certificate(self, user_id: str, amount: float) -> str:
        """Send a certificate of so many dollars to a user, where the policy allows it."""
        methods = self._user(user_id)["payment_methods"]
        key = next((one for one in _NEW_CERTIFICATES if one not in methods), None)
        if key is None:
            raise ValueError("no more than three certificates can be sent in one conversation")
        added = {"source": "certificate", "amount": amount, "id": key}
        self.tables.edit("users", user_id)["payment_methods"][key] = added
        return f"Certificate {key} of {amount:g} dollars is sent to {user_id}."

    # ------------------------------------------------------------------ the rest

    def _user(self, user_id: str) -> Any:
        user = self.tables.get("users", user_id)
        if user is None:
            raise ValueError("user not found")
        return user

    def _reservation(self, reservation_id: str) -> Any:
        reservation = self.tables.get("reservations", reservation_id)
        if reservation is None:
            raise ValueError("reservation not found")
        return reservation

    def _priced(self, leg: Leg, cabin: str, people: int) -> dict[str, Any]:
        number, day = leg["flight_number"], leg["date"]
        flight = self.tables.get("flights", number)
        found = None if flight is None else flight["dates"].get(day)
        if flight is None or found is None or found["status"] != "available":
            raise ValueError(f"flight {number} is not available on {day}")
        if found["available_seats"][cabin] < people:
            raise ValueError(f"not enough seats on flight {number}")
        ends = {"origin": flight["origin"], "destination": flight["destination"]}
        return {**leg, "price": found["prices"][cabin], **ends}

    def _require_payable(self, user_id: str, payments: Sequence[Payment], price: float) -> None:
        methods = self._user(user_id)["payment_methods"]
        for one in payments:
            method = methods.get(one["payment_id"])
            if method is None:
                raise ValueError(f"payment method {one['payment_id']} not found")
            if method["source"] in ("gift_card", "certificate") and method["amount"] < one["amount"]:
                raise ValueError(f"not enough balance in payment method {one['payment_id']}")
        used = [one["payment_id"] for one in payments if methods[one["payment_id"]]["source"] == "certificate"]
        if len(used) > len(set(used)):
            raise ValueError("a certificate can pay only once: what is left of it is lost")
        paid = sum(one["amount"] for one in payments)
        if paid != price:
            raise ValueError(f"payment amount does not add up: the price is {price:g}, paid {paid:g}")

    def _charge(self, user_id: str, payment_id: str, cost: float) -> None:
        method = self._user(user_id)["payment_methods"].get(payment_id)
        if method is None:
            raise ValueError("payment method not found")
        if method["source"] == "certificate":
            raise ValueError("a certificate cannot be used to update a reservation")
        if method["source"] == "gift_card":
            if method["amount"] < cost:
                raise ValueError("gift card balance is not enough")
            self.tables.edit("users", user_id)["payment_methods"][payment_id]["amount"] -= cost

    def _paid(self, reservation: Any, payment_id: str, cost: float) -> str:
        if cost != 0:
            reservation["payment_history"].append({"payment_id": payment_id, "amount": cost})
        return shown(reservation)


def _require_bags(*counts: int) -> None:
    if not all(0 <= one <= _MOST_BAGS for one in counts):
        raise ValueError(f"wanted from 0 to {_MOST_BAGS} bags")


def _kept(leg: Leg, kept: Mapping[tuple[str, str], Any]) -> dict[str, Any] | None:
    old = kept.get((leg["flight_number"], leg["date"]))
    return None if old is None else {**leg, **{name: old[name] for name in ("price", "origin", "destination")}}


def _available(flight: Mapping[str, Any], day: str) -> Iterable[dict[str, Any]]:
    found = flight["dates"].get(day)
    if found is not None and found["status"] == "available":
        yield {**{name: one for name, one in flight.items() if name != "dates"}, **found}


def _arrival_day(flight: Mapping[str, Any], day: str) -> str:
    try:
        return str(date.fromisoformat(day) + timedelta(days="+1" in flight["scheduled_arrival_time_est"]))
    except ValueError as error:
        raise ValueError(f"wanted a day as YYYY-MM-DD, found {day!r}") from error
