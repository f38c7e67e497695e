# predict: mss=1410 longest=1500 told=1450 last=node-2:cni0
overlaynet exec red -- ip link set eth0 mtu 1450
overlaynet exec blue -- ip link set eth0 mtu 1450
