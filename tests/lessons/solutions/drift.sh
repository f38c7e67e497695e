# predict: leak=node-1:eth0 device=6 foreign=stays idle=0
overlaynet heal
