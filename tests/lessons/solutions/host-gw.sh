# predict: longer=0 to-blue=node-2 to-green=router past-tunnel=node-1:cni0
overlaynet network set --yes - <<'CONFIG'
{"Network": "10.244.0.0/16", "SubnetLen": 24, "Backend": {"Type": "vxlan", "DirectRouting": true}}
CONFIG
overlaynet network apply
