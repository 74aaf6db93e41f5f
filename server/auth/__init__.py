"""Who a caller is: certificates, join tokens, the operator's token."""
