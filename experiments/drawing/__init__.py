"""The figures of the experiments, drawn from the rows of their CSV files: one module an experiment."""
