"""From a published data set's own files to rows of `vision_rl.data.schema`: one module per kind of layout."""
