"""The web page that shows a run. What needs NiceGUI and uvicorn is in here and nowhere else; what shows is in static/."""
