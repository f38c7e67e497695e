# predict: source=10.244.1.1 ttl=64 no-hairpin=bridge no-masquerade=red
on() { overlaynet exec node-1 -- "$@"; }
port=$(on bridge fdb show br cni0 | sed -n 's/^0a:58:0a:f4:01:02 dev \([^ ]*\) master.*/\1/p')
on bridge link set dev "$port" hairpin on
on iptables -w -t nat -A POSTROUTING -s 10.244.1.2 -d 10.244.1.2 -j MASQUERADE
