"""Any checkpoint in, and out: loading, conversion, export."""
