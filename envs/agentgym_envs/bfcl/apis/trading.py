"""A trading account: prices, orders, a watch list and money."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, ClassVar

from agentgym.tools import tool
from agentgym_envs.bfcl.apis.base import Api, facts

_NOW = datetime(2024, 9, 1, 10, 30)
"""The world's own clock stands still."""
_COLUMNS = ("price", "percent_change", "volume", "MA(5)", "MA(20)")


class TradingBot(Api):
    """Orders are kept by their number, written as text."""

    seed = 1053520
    defaults: ClassVar[dict[str, Any]] = {
        "orders": {
            "12345": {"id": 12345, "order_type": "Buy", "symbol": "AAPL", "price": 210.65, "amount": 10,
                      "status": "Completed"},
            "12446": {"id": 12446, "order_type": "Sell", "symbol": "GOOG", "price": 2840.56, "amount": 5,
                      "status": "Pending"},
        },
        "account_info": {"account_id": 12345, "balance": 10000.0, "binding_card": 1974202140965533},
        "authenticated": False,
        "market_status": "Closed",
        "order_counter": 12446,
        "stocks": None,
        "watch_list": ["NVDA"],
        "transaction_history": [],
    }  # fmt: skip

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.state["orders"] = {str(key): one for key, one in self.state["orders"].items()}
        if self.state["stocks"] is None:
            table = facts()["stocks"].items()
            self.state["stocks"] = {name: dict(zip(_COLUMNS, row, strict=True)) for name, row in table}

    @tool
    def trading_login(self, username: str, password: str) -> Any:  # noqa: ARG002 -- anybody may
        """Log in to the trading account."""
        known = self.state["authenticated"]
        self.state["authenticated"] = True
        return {"status": "Already logged in" if known else "Logged in"}

    @tool
    def trading_logout(self) -> Any:
        """Log out of the trading account."""
        known = self.state["authenticated"]
        self.state["authenticated"] = False
        return {"status": "Logged out" if known else "Nobody was logged in"}

    @tool
    def trading_get_login_status(self) -> Any:
        """Tell whether somebody is logged in to trade."""
        return {"status": bool(self.state["authenticated"])}

    @tool
    def get_current_time(self) -> Any:
        """Tell the time."""
        return {"current_time": f"{_NOW:%I:%M %p}"}

    @tool
    def get_symbol_by_name(self, name: str) -> Any:
        """Find a company's symbol by its name."""
        return {"symbol": facts()["symbols"].get(name, "Stock not found")}

    @tool
    def get_stock_info(self, symbol: str) -> Any:
        """Show a stock's price, change, volume and moving averages."""
        self._stock(symbol)
        return self.state["stocks"][symbol]

    @tool
    def get_available_stocks(self, sector: str) -> Any:
        """List the symbols of a sector, such as Technology."""
        return {"stock_list": facts()["sectors"].get(sector, [])}

    @tool
    def filter_stocks_by_price(self, stocks: list[str], min_price: float, max_price: float) -> Any:
        """Keep of a list of symbols those whose price is between two bounds."""
        prices = {name: self.state["stocks"].get(name, {}).get("price", 0) for name in stocks}
        return {"filtered_stocks": [name for name in stocks if min_price <= prices[name] <= max_price]}

    @tool
    def notify_price_change(self, stocks: list[str], threshold: float) -> Any:
        """Tell which of these stocks changed by at least so many percent."""
        table = self.state["stocks"]
        moved = [name for name in stocks if name in table and abs(table[name].get("percent_change", 0)) >= threshold]
        return {"notification": f"Changed by {threshold} % or more: {', '.join(moved) or 'none'}."}

    @tool
    def place_order(self, order_type: str, symbol: str, price: float, amount: int) -> Any:
        """Place an order, Buy or Sell, for a number of shares at a price."""
        self._signed_in()
        self._stock(symbol)
        if price <= 0 or amount <= 0:
            raise ValueError("wanted a price and an amount above 0")
        number = self.state["order_counter"]
        order = {"id": number, "order_type": order_type, "symbol": symbol, "price": price, "amount": amount,
                 "status": "Open"}  # fmt: skip
        self.state["orders"][str(number)] = order
        self.state["order_counter"] += 1
        told = {"order_type": order_type, "status": "Pending", "price": price, "amount": amount}
        return {"order_id": number, **told}

    @tool
    def get_order_details(self, order_id: int) -> Any:
        """Show an order."""
        return self._order(order_id)

    @tool
    def cancel_order(self, order_id: int) -> Any:
        """Cancel an order that is not completed."""
        order = self._order(order_id)
        if order.get("status") == "Completed":
            raise ValueError(f"the order {order_id} is completed already")
        order["status"] = "Cancelled"
        return {"order_id": order_id, "status": "Cancelled"}

    @tool
    def get_order_history(self) -> Any:
        """List the numbers of all orders."""
        self._signed_in()
        return {"order_history": [int(key) for key in self.state["orders"] if key.isdecimal()]}

    @tool
    def get_account_info(self) -> Any:
        """Show the account's number, balance and card."""
        self._signed_in()
        return self.state["account_info"]

    @tool
    def fund_account(self, amount: float) -> Any:
        """Pay money into the account."""
        self._signed_in()
        return {"status": "Account funded", "new_balance": self._pay("deposit", amount, 1)}

    @tool
    def withdraw_funds(self, amount: float) -> Any:
        """Take money out of the account, while the market is open."""
        self._signed_in()
        if self.state["market_status"] != "Open":
            raise ValueError("the market is closed")
        if amount > self.state["account_info"]["balance"]:
            raise ValueError("there is not so much in the account")
        return {"status": "Withdrawn", "new_balance": self._pay("withdrawal", amount, -1)}

    @tool
    def get_transaction_history(self, start_date: str | None = None, end_date: str | None = None) -> Any:
        """Show the deposits and withdrawals from one day to another, as YYYY-MM-DD."""
        self._signed_in()
        first, last = (_day(one) if one else one for one in (start_date, end_date))
        kept = [one for one in self.state["transaction_history"]
                if (first or "") <= _moment(one) and (last is None or _moment(one)[:10] <= last)]  # fmt: skip
        return {"transaction_history": kept}

    @tool
    def get_watchlist(self) -> Any:
        """Show the watch list."""
        self._signed_in()
        return {"watchlist": self.state["watch_list"]}

    @tool
    def add_to_watchlist(self, stock: str) -> Any:
        """Put a symbol on the watch list."""
        self._stock(stock)
        if stock not in self.state["watch_list"]:
            self.state["watch_list"].append(stock)
        return {"watchlist": self.state["watch_list"]}

    @tool
    def remove_stock_from_watchlist(self, symbol: str) -> Any:
        """Take a symbol off the watch list."""
        self._signed_in()
        if symbol not in self.state["watch_list"]:
            raise ValueError(f"{symbol} is not on the watch list")
        self.state["watch_list"].remove(symbol)
        return {"status": f"{symbol} is off the watch list."}

    # ------------------------------------------------------------------ the rest

    def _signed_in(self) -> None:
        self.require("authenticated", "nobody is logged in to trade; log in first")

    def _stock(self, symbol: str) -> None:
        if symbol not in self.state["stocks"]:
            raise ValueError(f"there is no stock with the symbol {symbol!r}")

    def _order(self, order_id: int) -> Any:
        found = self.state["orders"].get(str(order_id))
        if not isinstance(found, dict):
            raise ValueError(f"there is no order {order_id}")
        return found

    def _pay(self, kind: str, amount: float, sign: int) -> float:
        if not 0 < amount < 1e15:
            raise ValueError("wanted an amount above 0")
        moment = _NOW + timedelta(seconds=self.random.randint(0, 24 * 3600))
        self.state["account_info"]["balance"] += sign * amount
        self.state["transaction_history"].append({"type": kind, "amount": amount, "timestamp": str(moment)})
        return float(self.state["account_info"]["balance"])


def _moment(transaction: Mapping[str, Any]) -> str:
    return str(transaction.get("timestamp", ""))


def _day(text: str) -> str:
    try:
        return str(datetime.strptime(text, "%Y-%m-%d").date())
    except ValueError as error:
        raise ValueError(f"wanted a day as YYYY-MM-DD, found {text!r}") from error
