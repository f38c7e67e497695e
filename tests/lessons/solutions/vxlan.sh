# predict: ttl=62 overhead=50 no-neighbour=node-1:cni0 no-fdb=node-1:flannel.1
on() { overlaynet exec node-1 -- "$@"; }
on ip link add flannel.1 address 02:0a:f4:01:00:00 type vxlan id 1 local 192.168.50.11 dev eth0 dstport 8472 nolearning
on ip address add 10.244.1.0/32 dev flannel.1
on ip link set flannel.1 up
on ip route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink
on ip neigh add 10.244.2.0 lladdr 02:0a:f4:02:00:00 dev flannel.1 nud permanent
on bridge fdb append 02:0a:f4:02:00:00 dev flannel.1 dst 192.168.50.12
