# A module that says itself how it is: its program sends
#   PUT /v1/agent/check/pass/documents-1-alive
# at least every 30 seconds, else it turns critical.
service {
  name = "documents"
  id   = "documents-1"
  port = 8003
  tags = ["module"]

  meta {
    manifest_path = "/manifest.json"
    version       = "1.3.0"
  }

  check {
    id                                = "documents-1-alive"
    name                              = "documents says it is well"
    ttl                               = "30s"
    deregister_critical_service_after = "10m"
  }
}
