"""The paper's tables and more, each reproduced by one command: one small file per experiment."""
