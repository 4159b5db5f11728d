"""The catalogue's own programs: small, sharing one reader (`scripts.catalog`)."""
