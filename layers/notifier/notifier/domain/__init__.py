"""Plain values and rules. Knows nothing of AWS, of BLiP or of the contract's libraries."""
