"""Mathematics that several tasks and exhibits share: Hessians, clustering, quadratics, statistics."""
