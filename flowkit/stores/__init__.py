"""Object stores: addresses, and the bytes behind them; all that knows fsspec."""
