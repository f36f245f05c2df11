"""Parameters that only the configurator can read: sealed before they reach PostgreSQL or RabbitMQ.

Service B has a public key and seals; it cannot open what it has sealed. The configurator has the private keys.

    {"sealed":"1.<key id>.<wrapped data key>.<counter and ciphertext>"}

A sealed value is a JSON object in the place of the parameters, so that the column and the message stay as they are. It
can be mistaken for no parameters: those have a `username`. The binary parts are base64url without padding.

- The *data key* is wrapped for the public key by HPKE (RFC 9180, base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256,
  ChaCha20Poly1305), and serves 10,000 tasks or a minute: a wrap costs as much as a hundred seals.
- The parameters are encrypted with it by AES-256-GCM (NIST SP 800-38D). The nonce counts, so none comes twice.
- The task's id and its device's serial are associated data: a value that was put into another task does not open.

What sealing does not do: whoever has the public key can seal, so it says nothing of where a value comes from.
"""
