# What seed 86 hides, which is the example of the page. Naming it is all there is to do.
# predict: cause=fdb_wrong place=node-1
