"""Folkmoot under attack: processes killed, networks broken, input forged. See ./scripts/chaos."""
