"""The web page that shows a run: what needs NiceGUI and uvicorn is in here alone, and what shows is in static/."""
