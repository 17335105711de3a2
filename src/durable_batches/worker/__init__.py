"""One process's share of the work: sessions, leases, claims, journal."""
