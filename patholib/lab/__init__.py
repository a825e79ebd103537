"""What a notebook or a cluster needs: parameters, explorer, sessions, sweeps."""
