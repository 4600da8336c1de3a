"""Images with labels or annotations: loading, splitting, augmenting and mixing."""
