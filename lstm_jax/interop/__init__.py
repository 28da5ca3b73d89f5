"""Parameters in and out of other libraries."""
