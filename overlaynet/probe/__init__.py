"""What is looked at, sent and captured on a host, from inside its network namespaces.

`python -m overlaynet.probe` is a small program without memory. It is started on the host in question (by
the namespace driver inside its namespace, by the ssh driver over ssh), takes one job as one line of JSON
on standard input and answers with one JSON document on standard output; in a session it takes job after job.
It needs no agent and no etcd, so everything built on it works while those are dead.

The other modules here turn what probes report into answers: `mesh` asks every pair of containers,
`survey` compares a host with what it should hold.
"""
