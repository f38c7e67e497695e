"""etcd over gRPC: the only package that imports etcd3 or grpc.

Of etcd3 only the generated messages and stubs are used. Its own client is left alone: its watcher dies after
one error, spins while no member answers, and its calls have no deadline unless every one is given one.

    endpoints.py   what the operator wrote into what gRPC needs
    credentials.py certificates and the password: the only reader of both; why TLS failed
    rpc.py         the import of grpc and etcd3, and their errors turned into ours
    connection.py  a channel for each member, the one in use, deadlines, the password's token
    watch.py       a stream that survives restarts, compaction and members that vanish
    client.py      EtcdStore: the calls of `ports.Store`
    configured.py  an EtcdStore as settings say
"""

from overlaynet.store.etcd.client import EtcdStore
from overlaynet.store.etcd.configured import connect

__all__ = ["EtcdStore", "connect"]
