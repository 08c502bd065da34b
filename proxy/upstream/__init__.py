"""Connections to clouds: `dial` opens one, `connection` carries one exchange, `pool` keeps them."""
