"""Score files side by side: tables, figures, comparisons and a page that shows them; knows nothing of models."""
