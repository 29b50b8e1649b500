"""The configuration files of chat clients: their servers come to the gateway, and the gateway goes to them."""
