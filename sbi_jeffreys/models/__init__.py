"""The conditional flow, the conditional energy, and the pair of both."""
