# predict: ttl=62 source=192.168.50.11 no-forwarding=node-1:cni0 no-masquerade=outside:eth0
overlaynet exec red -- ip route add default via 10.244.1.1
overlaynet exec node-1 -- sysctl -w net.ipv4.ip_forward=1
overlaynet exec node-1 -- iptables -w -t nat -A POSTROUTING -s 10.244.1.0/24 ! -d 10.244.0.0/16 -j MASQUERADE
