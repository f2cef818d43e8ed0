"""The live dashboard: NiceGUI pages over telemetry's read models, on a loopback port of their own."""
