# predict: ttl=64 to-mac=blue forgotten=both
on() { overlaynet exec node-1 -- "$@"; }
on ip link add br0 up type bridge
on ip link add to-red up master br0 type veth peer name eth0 netns ovl-namespaces-red
on ip link add to-blue up master br0 type veth peer name eth0 netns ovl-namespaces-blue
overlaynet exec red -- ip address add 10.244.1.2/24 dev eth0
overlaynet exec red -- ip link set eth0 up
overlaynet exec blue -- ip address add 10.244.1.3/24 dev eth0
overlaynet exec blue -- ip link set eth0 up
