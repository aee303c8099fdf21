"""An online shop: orders to cancel, change, return and exchange, as in tau-bench's retail domain.

The rules and the shape of the records follow Yao et al. 2024, "tau-bench: A Benchmark for Tool-Agent-User Interaction
in Real-World Domains"; gold actions of its tasks leave the same records behind, and answer with the same JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from agentgym.tools import tool
from agentgym_envs.tools.service import ServiceWorld
from agentgym_envs.tools.world import shown


class RetailWorld(ServiceWorld):
    """Tables `users`, `orders` and `products`."""

    policy: ClassVar[str] = """You serve the customers of an online shop.
- First find out who the customer is: find the user id by email, or by name and zip code, even if an id is given.
- Serve one customer per conversation, and tell nothing about others.
- Before a call that changes anything, say what you will do and ask; go on only after an explicit yes.
- Tell only what the tools or the customer told you. Make one call at a time, or talk, never both at once.
- Hand over to a human only what your tools cannot do.
- Only pending orders can be cancelled or changed, only delivered ones returned or exchanged. Items can be changed or
  exchanged once per order, only for available variants of the same product: collect them all before you call.
- Refunds go to the original payment method or to a gift card; a gift card must cover what is charged to it."""
    changing = frozenset(
        {
            "cancel_pending_order",
            "exchange_delivered_order_items",
            "modify_pending_order_address",
            "modify_pending_order_items",
            "modify_pending_order_payment",
            "modify_user_address",
            "return_delivered_order_items",
        }
    )

    # ------------------------------------------------------------------ reading

    @tool
    def find_user_id_by_email(self, email: str) -> str:
        """Find a user id by email."""
        return self._find_user(lambda user: user["email"].casefold() == email.casefold())

    @tool
    def find_user_id_by_name_zip(self, first_name: str, last_name: str, zip: str) -> str:  # noqa: A002
        """Find a user id by first name, last name and zip code; for customers without a known email."""
        wanted = (first_name.casefold(), last_name.casefold(), zip)
        return self._find_user(lambda user: _identity(user) == wanted)

    @tool
    def get_user_details(self, user_id: str) -> str:
        """Show a user's name, address, payment methods and orders."""
        return shown(self._user(user_id))

    @tool
    def get_order_details(self, order_id: str) -> str:
        """Show an order's status, items, address and payments. Order ids begin with #, as in #W0000000."""
        return shown(self._order(order_id))

    @tool
    def get_product_details(self, product_id: str) -> str:
        """Show a product's variants: item ids, options, prices, availability. A product id is not an item id."""
        product = self.tables.get("products", product_id)
        if product is None:
            raise ValueError("product not found")
        return shown(product)

    @tool
    def list_all_product_types(self) -> str:
        """List the names and product ids of all products."""
        return shown(dict(sorted((one["name"], one["product_id"]) for _, one in self.tables.items("products"))))

    # ------------------------------------------------------------------ changing

    @tool
    def cancel_pending_order(self, order_id: str, reason: Literal["no longer needed", "ordered by mistake"]) -> str:
        """Cancel a pending order and refund it. Ask the customer first."""
        if self._order(order_id)["status"] != "pending":
            raise ValueError("non-pending order cannot be cancelled")
        order = self.tables.edit("orders", order_id)
        paid = list(order["payment_history"])
        for payment in paid:
            method = payment["payment_method_id"]
            order["payment_history"].append(_transaction("refund", payment["amount"], method))
            self._add_to_gift_card(order["user_id"], method, payment["amount"])
        order["status"], order["cancel_reason"] = "cancelled", reason
        return shown(order)

    @tool
    def modify_pending_order_address(
        self, order_id: str, address1: str, address2: str, city: str, state: str, country: str, zip: str  # noqa: A002
    ) -> str:  # fmt: skip
        """Change the shipping address of a pending order. Ask the customer first."""
        self._changeable(order_id)
        order = self.tables.edit("orders", order_id)
        order["address"] = _address(address1, address2, city, state, country, zip)
        return shown(order)

    @tool
    def modify_user_address(
        self, user_id: str, address1: str, address2: str, city: str, state: str, country: str, zip: str  # noqa: A002
    ) -> str:  # fmt: skip
        """Change a user's default address. Ask the customer first."""
        self._user(user_id)
        user = self.tables.edit("users", user_id)
        user["address"] = _address(address1, address2, city, state, country, zip)
        return shown(user)

    @tool
    def modify_pending_order_payment(self, order_id: str, payment_method_id: str) -> str:
        """Pay a pending order by another of the user's payment methods. Ask the customer first."""
        order = self._changeable(order_id)
        method = self._payment_method(order["user_id"], payment_method_id)
        history = order["payment_history"]
        if len(history) != 1 or history[0]["transaction_type"] != "payment":
            raise ValueError("there should be exactly one payment for a pending order")
        old, amount = history[0]["payment_method_id"], history[0]["amount"]
        if old == payment_method_id:
            raise ValueError("the new payment method should be different from the current one")
        if method["source"] == "gift_card" and method["balance"] < amount:
            raise ValueError("insufficient gift card balance to pay for the order")
        order = self.tables.edit("orders", order_id)
        order["payment_history"] += [
            _transaction("payment", amount, payment_method_id),
            _transaction("refund", amount, old),
        ]
        self._add_to_gift_card(order["user_id"], payment_method_id, -amount)
        self._add_to_gift_card(order["user_id"], old, amount)
        return shown(order)

    @tool
    def modify_pending_order_items(
        self, order_id: str, item_ids: list[str], new_item_ids: list[str], payment_method_id: str
    ) -> str:
        """Change items of a pending order into other variants of the same products, once. Ask the customer first."""
        order = self._changeable(order_id)
        difference = self._price_difference(order, item_ids, new_item_ids)
        self._covers(order["user_id"], payment_method_id, difference)
        order = self.tables.edit("orders", order_id)
        kind = "payment" if difference > 0 else "refund"
        order["payment_history"].append(_transaction(kind, abs(difference), payment_method_id))
        self._add_to_gift_card(order["user_id"], payment_method_id, -difference)
        for old, new in zip(item_ids, new_item_ids, strict=True):
            item = next(one for one in order["items"] if one["item_id"] == old)
            variant = self._product(item["product_id"])["variants"][new]
            item |= {"item_id": new, "price": variant["price"], "options": variant["options"]}
        order["status"] = "pending (item modified)"
        return shown(order)

    @tool
    def exchange_delivered_order_items(
        self, order_id: str, item_ids: list[str], new_item_ids: list[str], payment_method_id: str
    ) -> str:
        """Exchange items of a delivered order for other variants of the same products, once. Ask the customer first."""
        order = self._delivered(order_id, "exchanged")
        difference = self._price_difference(order, item_ids, new_item_ids)
        self._covers(order["user_id"], payment_method_id, difference)
        order = self.tables.edit("orders", order_id)
        order |= {
            "status": "exchange requested",
            "exchange_items": sorted(item_ids),
            "exchange_new_items": sorted(new_item_ids),
            "exchange_payment_method_id": payment_method_id,
            "exchange_price_difference": round(difference, 2),
        }
        return shown(order)

    @tool
    def return_delivered_order_items(self, order_id: str, item_ids: list[str], payment_method_id: str) -> str:
        """Return items of a delivered order; the refund goes where it came from or to a gift card. Ask first."""
        order = self._delivered(order_id, "returned")
        self._payment_method(order["user_id"], payment_method_id)
        original = order["payment_history"][0]["payment_method_id"]
        if payment_method_id != original and "gift_card" not in payment_method_id:
            raise ValueError("payment method should be either the original payment method or a gift card")
        _check_items(order, item_ids)
        order = self.tables.edit("orders", order_id)
        order |= {
            "status": "return requested",
            "return_items": sorted(item_ids),
            "return_payment_method_id": payment_method_id,
        }
        return shown(order)

    # ------------------------------------------------------------------ the rest

    def _find_user(self, fits: Callable[[Mapping[str, Any]], bool]) -> str:
        found = next((key for key, user in self.tables.items("users") if fits(user)), None)
        if found is None:
            raise ValueError("user not found")
        return found

    def _user(self, user_id: str) -> Any:
        user = self.tables.get("users", user_id)
        if user is None:
            raise ValueError("user not found")
        return user

    def _order(self, order_id: str) -> Any:
        order = self.tables.get("orders", order_id)
        if order is None:
            raise ValueError("order not found; its id begins with #")
        return order

    def _product(self, product_id: str) -> Any:
        return self.tables.get("products", product_id)

    def _changeable(self, order_id: str) -> Any:
        order = self._order(order_id)
        if order["status"] != "pending":
            raise ValueError("non-pending order cannot be modified")
        return order

    def _delivered(self, order_id: str, done: str) -> Any:
        order = self._order(order_id)
        if order["status"] != "delivered":
            raise ValueError(f"non-delivered order cannot be {done}")
        return order

    def _payment_method(self, user_id: str, payment_method_id: str) -> Any:
        methods = self._user(user_id)["payment_methods"]
        if payment_method_id not in methods:
            raise ValueError("payment method not found")
        return methods[payment_method_id]

    def _price_difference(self, order: Mapping[str, Any], old: Sequence[str], new: Sequence[str]) -> float:
        _check_items(order, old)
        if len(old) != len(new):
            raise ValueError("the number of items and of new items should match")
        difference = 0.0
        for old_id, new_id in zip(old, new, strict=True):
            item = next(one for one in order["items"] if one["item_id"] == old_id)
            variant = self._product(item["product_id"])["variants"].get(new_id)
            if variant is None or not variant["available"]:
                raise ValueError(f"new item {new_id} not found or available")
            difference += variant["price"] - item["price"]
        return difference

    def _covers(self, user_id: str, payment_method_id: str, amount: float) -> None:
        method = self._payment_method(user_id, payment_method_id)
        if method["source"] == "gift_card" and method["balance"] < amount:
            raise ValueError("insufficient gift card balance to pay for the price difference")

    def _add_to_gift_card(self, user_id: str, payment_method_id: str, amount: float) -> None:
        if "gift_card" in payment_method_id:
            card = self.tables.edit("users", user_id)["payment_methods"][payment_method_id]
            card["balance"] = round(card["balance"] + amount, 2)


def _identity(user: Mapping[str, Any]) -> tuple[str, str, str]:
    name = user["name"]
    return name["first_name"].casefold(), name["last_name"].casefold(), user["address"]["zip"]


def _transaction(kind: str, amount: float, payment_method_id: str) -> dict[str, Any]:
    return {"transaction_type": kind, "amount": amount, "payment_method_id": payment_method_id}


def _address(address1: str, address2: str, city: str, state: str, country: str, zip_code: str) -> dict[str, str]:
    return {
        "address1": address1, "address2": address2, "city": city, "state": state, "country": country, "zip": zip_code,
    }  # fmt: skip


def _check_items(order: Mapping[str, Any], item_ids: Sequence[str]) -> None:
    held = [one["item_id"] for one in order["items"]]
    for one in item_ids:
        if item_ids.count(one) > held.count(one):
            raise ValueError(f"{one} not found in the order")
