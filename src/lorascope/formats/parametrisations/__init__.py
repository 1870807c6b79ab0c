"""One parametrisation each: what the tensors of a site mean, whatever the format calls them."""
