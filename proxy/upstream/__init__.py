"""Connections to Contentsquare's clouds: `dial` opens one, `connection` carries one exchange, `pool` keeps them."""
