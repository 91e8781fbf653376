"""What the experiments share: command lines, recorded rows, runs, data, and what is read out of the CSV files."""
