"""Layer 4: OpenTelemetry traces of executions; needs the extra `otel`.

Internal: these modules may change in any release.
"""
