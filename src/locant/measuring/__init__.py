"""How anything is measured: right first, then the clock, then memory, on a machine that is named."""
