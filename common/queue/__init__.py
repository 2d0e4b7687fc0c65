"""What Redis keeps of jobs: the jobs themselves, who works on what, who is alive, whose submission it is."""
