"""An HTTP server in the form of the OpenAI API."""
