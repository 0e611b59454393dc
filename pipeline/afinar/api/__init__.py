"""The interface of `import afinar`: jobs as functions, and what they write as objects."""
