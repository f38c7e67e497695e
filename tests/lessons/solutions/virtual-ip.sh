# predict: turns=node-1:cni0 reply=10.112.0.10 counter=1 no-bridge-nf=10.244.1.3
on() { overlaynet exec node-1 -- iptables -w -t nat "$@"; }
on -A PREROUTING -d 10.112.0.10 -p tcp --dport 80 -j DNAT --to-destination 10.244.2.2:8080
on -A PREROUTING -d 10.112.0.20 -p tcp --dport 80 -j DNAT --to-destination 10.244.1.3:8080
