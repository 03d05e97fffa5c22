"""What an order would cost or bring at the exchange simulator if it were placed now."""

from __future__ import annotations

from decimal import Decimal

from cluster.exchange_levels import Book
from cluster.exchange_matching import Arrival
from cluster.exchange_orders import Fees, Preview, worst_ticks
from cluster.exchange_ticket import Ticket
from strategies.model import Side


def previewed(ticket: Ticket, arrival: Arrival, book: Book, fees: Fees, errors: tuple[str, ...]) -> Preview:
    """``arrival`` is matched already: that part is at the book's prices and the taker's rate.

    What would rest is at its own (worst) price, with the maker's rate, or the taker's once it has to be triggered.
    """
    product, buys = arrival.product, ticket.side is Side.BUY
    base, value = product.quantity(arrival.filled), arrival.value
    fee = value * arrival.taker_rate
    average = value / base if base else product.price(ticket.ticks or 0)
    if ticket.ticks is not None and arrival.left:
        rest = product.quantity(arrival.left) * product.price(worst_ticks(ticket) or 0)
        base += product.quantity(arrival.left)
        value += rest
        fee += rest * fees.rate("MAKER" if ticket.stop_ticks is None else "TAKER")
    elif ticket.lots is not None:
        base = product.quantity(ticket.lots)
    best_bid, best_ask = (product.price(side[0][0]) if side else Decimal(0) for side in (book.bids, book.asks))
    best = best_ask if buys else best_bid
    return Preview(
        order_total=value + fee if buys else value - fee,
        commission_total=fee,
        base_size=base,
        quote_size=value if ticket.quote_size is None else ticket.quote_size,
        best_bid=best_bid,
        best_ask=best_ask,
        average_price=average,
        slippage=abs(average - best) / best if arrival.filled and best else Decimal(0),
        errors=errors,
    )
