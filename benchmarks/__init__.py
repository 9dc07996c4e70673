"""One script per stated target; each prints ratios measured side by side in one run."""
