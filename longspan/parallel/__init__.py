"""Many ranks: who is there, where each stands in the mesh, and what they send each other."""
