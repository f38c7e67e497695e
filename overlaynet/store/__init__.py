"""What the cluster has agreed on: etcd, and a store in memory that behaves like it."""
