"""Speed: times, rates, memory and growth of the guess and of training, measured in one run."""
