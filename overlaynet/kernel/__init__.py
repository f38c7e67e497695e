"""The Linux kernel: rtnetlink, sysctls, network namespaces and capabilities.

`apply.KernelAdapter` is the door that the rest of the project uses (`overlaynet.ports.Kernel`). Below it:

- `handle`   one rtnetlink socket: batches with errors by sequence number, consistent dumps
- `wire`     requests for neighbours, forwarding entries, routes and addresses, packed by hand
- `links`    requests about links, packed by pyroute2 (imported here and nowhere else, and only when needed)
- `parse`    answers, to the tuples of `overlaynet.state`
- `observe`  a whole namespace at once
- `attach`   a container's veth pair
- `sysctl`, `netns`, `capability`  /proc/sys, named namespaces, what this process may do
- `quiet`    namespaces in which nothing happens by itself
- `userns`   namespaces of somebody who is not root
- `process`  processes that are started detached, and stopping exactly those
"""
